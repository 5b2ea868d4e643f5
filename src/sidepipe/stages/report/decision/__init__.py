"""`report=audit`: two pages for people who decide about a model, and the same facts as JSON."""

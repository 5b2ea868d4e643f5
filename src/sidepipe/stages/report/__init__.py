"""Stage 9: tables, figures and one page that a person can read without the code."""

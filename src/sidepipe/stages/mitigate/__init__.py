"""How to stop a model from replaying images, what each way costs, and whether it holds."""

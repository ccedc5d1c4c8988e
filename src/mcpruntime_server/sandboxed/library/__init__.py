"""What user code sees: tools, skills, models, inputs and knowledge."""

"""What user code sees in a sandbox: tools, skills, models, inputs and knowledge."""

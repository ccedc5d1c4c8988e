"""Model requests: budgets, retries, structured answers, and the process that sends them."""

"""Model requests from code: budgets, retries, structured answers, and the process that sends the requests."""

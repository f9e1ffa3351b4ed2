"""Who is champion, who was, and why: the ledger, the outcome of an attempt, and what a person does by hand."""

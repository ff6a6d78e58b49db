"""The referee: scores, audits, compares and packages records. Shares no code with train_gpt.py or data/."""

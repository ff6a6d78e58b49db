"""The referee: scores, audits, compares and packages records.

It shares no code with train_gpt.py or data/.
"""

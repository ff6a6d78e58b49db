"""What is made from papers: record folders, their README and pictures, and the boards."""

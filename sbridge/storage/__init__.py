"""Files: what is written, what may be read, and who may write."""

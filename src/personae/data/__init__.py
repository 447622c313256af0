"""Surveys as validated, sparse tables; one reader a file."""

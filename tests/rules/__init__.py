"""Tests of the table of op rules: each row is true, and a lie is found."""

"""The same numbers as the files of grpo/, faster."""

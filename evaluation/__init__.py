"""What judges afterwards: metrics, text metrics, comparison, the report page."""

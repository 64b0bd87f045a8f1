"""Re-exports the text metrics of evaluation/text_metrics.py under their earlier path."""
from evaluation.text_metrics import bleu4, cider, meteor

__all__ = ["bleu4", "cider", "meteor"]

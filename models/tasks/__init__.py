"""The models of the fine-tuning tasks (appendix A.1 of the paper)."""

"""Tasks of EleutherAI's lm-evaluation-harness, which is the optional library lm_eval."""

"""Training rows and LoRA fine-tuning."""

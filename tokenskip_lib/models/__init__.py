"""The target model, its tokenizer, and what it is sent."""

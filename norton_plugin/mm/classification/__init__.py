"""Fine-tuning and evaluation of classifiers on mmengine's Runner."""

"""Fine-tuning: methods, mitigations, and one run measured on its step grid."""

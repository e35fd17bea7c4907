"""What did fine-tuning make my language model forget, what will it cost next time, and what actually helps?"""

__version__ = "0.1.0"

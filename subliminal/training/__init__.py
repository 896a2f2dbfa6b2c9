"""Training: TRL's SFT trainer with PEFT and Accelerate underneath, and the bias student."""

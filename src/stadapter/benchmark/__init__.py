"""What this program takes, against the released code in the same process and against the hardware's limit."""

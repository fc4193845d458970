"""What this program takes, beside the released code in the same process and beside the least the machine could take."""

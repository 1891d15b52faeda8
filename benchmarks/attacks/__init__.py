"""What hostile peers send, and the process that sends it. benchmarks/attack.py runs them beside a good client."""

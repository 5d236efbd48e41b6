"""What the scheduler keeps: sequences, KV blocks, queues."""

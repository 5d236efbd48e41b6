"""The state of the scheduler: sequences, KV blocks and queues."""

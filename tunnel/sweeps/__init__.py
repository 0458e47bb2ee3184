"""The work: stages as queues, the hands that train, and all that goes on with a study."""

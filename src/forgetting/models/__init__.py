"""Models: loaded, adapted, paired with their base, checked to be comparable; processes and memory."""

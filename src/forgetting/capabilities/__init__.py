"""What was lost: knowledge, reasoning and safety, item by item. `transitions` is pure numpy; torch comes in on use."""

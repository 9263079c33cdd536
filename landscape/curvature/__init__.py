"""From (model, loss, batch) to a symmetric operator."""

"""Search for token budgets: the frontier of cost and accuracy over `LengthConfig`s, and the budgets named from it."""

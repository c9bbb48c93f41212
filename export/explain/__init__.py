"""Where an artifact departs from its network: layer by layer, by bisection, and as the smallest script that shows it."""

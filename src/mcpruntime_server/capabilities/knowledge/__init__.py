"""Knowledge that code can search: providers, the index over what they have, and the service that answers calls."""

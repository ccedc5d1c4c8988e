"""Knowledge that code searches: providers, the index of their texts, and the call handler."""

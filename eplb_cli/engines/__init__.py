"""What engines load into themselves: nothing else of eplb imports it, and it waits until an engine calls."""

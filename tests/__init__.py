"""The tests. Each test's name is the sentence that it proves."""

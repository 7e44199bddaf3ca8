from helpers import one_thread  # noqa: F401 - for all tests here

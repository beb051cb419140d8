"""What every part of icecam agrees on: words, files and messages. Imports nothing else of ours."""

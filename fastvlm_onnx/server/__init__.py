"""The HTTP server: OpenAI's chat completions over an open model. Needs the extra `serve`."""

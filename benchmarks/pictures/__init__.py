"""Pictures of the page, of /docs and of `tdpipe top`, in a real browser."""

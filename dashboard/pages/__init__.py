"""One script per page; each shows the study that the sidebar has chosen."""

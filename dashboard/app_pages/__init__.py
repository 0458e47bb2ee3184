"""One script per page; each shows the study that the sidebar has chosen.

Not named pages/: a folder of that name beside the app makes Streamlit run a page that is linked to without the app.
"""

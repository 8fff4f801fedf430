"""golf: experiments for parameter golf, one typed configuration, one run folder, one counted artifact."""

__version__ = "0.1.0"

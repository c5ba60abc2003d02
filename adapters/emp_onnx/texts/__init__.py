"""Plans, reports and measurements as text for people; tables need rich, nothing here prints."""

__all__: list[str] = []

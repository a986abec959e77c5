"""Programs: recorded, bounded, and known to be what their classes say."""

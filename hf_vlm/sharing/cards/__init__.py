"""Cards of models and adapters: what a folder and its run tell, for readers and for the Hub."""

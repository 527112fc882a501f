"""A page in the browser on which every model can be tried: `hf-vlm demo FOLDER...`.

folders -> `folders.py`: what the model of each does, by its config alone -> a tab for each thing that one of them does
upload -> `uploads.py`: an upright RGB picture, or what is wrong with it
  -> `loaded_models.py`: the model, loaded when it is first wanted
  -> `reading.py`, `writing.py`, `chatting.py`, `coding.py`, `looking.py`: what comes of it, without a word of gradio
  -> `markup.py`: as HTML; `tabs.py` puts it on the page, `page.py` serves it
"""

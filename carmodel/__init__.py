"""Recognise the model of a car in a photo: data, model, training, evaluation, serving."""

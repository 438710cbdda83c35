"""Draw cars for the built-in sample: body shapes, paint, scenery, pose and light."""

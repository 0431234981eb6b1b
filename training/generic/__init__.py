"""The paper's necks in torchvision's RetinaNet, FCOS and Faster R-CNN, on data in COCO's format (section 5.6)."""
